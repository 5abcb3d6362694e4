"""Every mask that a model proposed.

Masks and scores come in; a table, its selection and its files go out.

`Candidates` (`table`) is one row for each mask, `select` filters and suppresses as SAM does,
`offer` decides which of these become labels, `rle` packs masks, `valid` leaves out what is not on
the scene, `concepts` says which class a model for concepts has looked for, `store` keeps them in
the run folder.
"""

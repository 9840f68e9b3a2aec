"""Looks at the columns of a data file and writes a configuration that trains on it: `prepare inspect`.

columns     rows -> profile of each column, and a sample of the rows
guessing    profiles -> task and fields, each with its reason (targets: the column to learn; table: the types)
splitting   rows -> train, validation, test
sizing      rows -> maximum length, batch size, steps
writing     all of it -> YAML with the reasons as comments
"""

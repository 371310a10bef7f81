"""Where a stream's messages are kept.

`port` is the contract, `memory` and `file` keep it, `directory` finds a stream's files, `fs` is the
only module that touches the operating system; `index` (over `pages`, `subject_table`, `runs`,
`views`) answers every question about messages for both stores; `record`, `block` and `recovery`
are the file format, its files and reading it back.
"""

"""The command line: thin, result on standard output, everything else on standard error."""

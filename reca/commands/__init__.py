"""What the verbs of the command line do: open files, call one room, write one record. No logic of its own."""

"""What a compiled program will need of a chip: operations, bytes, memory, collectives."""

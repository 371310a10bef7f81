"""What a description asks for, on a server: planned, made, and with other partitions made anew."""

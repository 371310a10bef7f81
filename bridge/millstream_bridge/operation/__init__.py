"""What operators hold: the commands and their settings."""

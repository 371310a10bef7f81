"""What operators see and do: the command line, the service, a group from outside."""

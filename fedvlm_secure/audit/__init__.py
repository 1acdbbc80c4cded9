"""What can be checked about a guarantee from outside: privacy by experiment, protocols by attack."""

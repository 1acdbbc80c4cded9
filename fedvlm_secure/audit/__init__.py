"""What can be checked about a guarantee from outside: runs by their records, protocols by attack, privacy by experiment."""

"""What can be checked from outside: runs by their records, protocols by attack, privacy by experiment."""

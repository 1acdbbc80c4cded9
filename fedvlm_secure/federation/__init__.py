"""A hospital (Participant), the server (Coordinator), and the run directory they write."""

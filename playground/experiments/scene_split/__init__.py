"""What the background/object split and its cache cost in answers: the experiment as one command, `run`."""

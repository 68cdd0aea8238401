"""What a run says of itself: its opening and its end, its cost beforehand, its curves and pictures in a logger."""

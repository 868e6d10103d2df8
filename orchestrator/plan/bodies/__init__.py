"""What each kind of task does when it is its turn, and what each kind of fact changes. `plan/forward.py` moves the frames."""

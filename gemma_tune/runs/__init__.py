"""The run engine: a run is a folder, its events are the truth, a supervisor outlives the app.

folder       RunFolder, create_run, find_run, list_runs; provenance: versions and machine
events       EventWriter, read_events
state        State, fold: what is known of a run, pure
reader       state and log read by offset while they grow
checkpoints  complete_checkpoints, write_marker, remove_partial_checkpoints
engine       start, stop, resume, reconcile, read_state, delete_run
follower     follower, resume_following: the app's threads
supervisor   the detached process of one run. It is served by launch (commands, environments), device (the queue),
             processes (who belongs to a run, how it is ended), hardware, evidence and verdict (how it ended)
chat         the torch-free client of the chat worker
"""

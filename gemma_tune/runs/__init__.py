"""The run engine: a run is a folder, its events are the truth, a supervisor outlives the app.

folder       RunFolder, create_run, find_run, list_runs
events       EventWriter, read_events
state        State, fold
checkpoints  complete_checkpoints, write_marker, remove_partial_checkpoints
engine       start, stop, resume, reconcile, read_state, delete_run
follower     follower, resume_following
supervisor   the detached process of one run; processes, device, hardware, verdict serve it
chat         the torch-free client of the chat worker
"""

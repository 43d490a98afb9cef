"""A worker that has imported once: in a local run of the workflow, jobs are forks of a process that has the libraries.

`python -m reca VERB ...` (`client`) hands its command to the worker that RECA_WORKER names, and waits; it runs the
command itself where there is none, or where the worker could not give it the very same surroundings. The `server` keeps
templates: processes with the libraries that earlier jobs have imported, and nothing of reca, one per environment. A
template forks for each command (`template`), so a job runs the checkout's code as a fresh start does. Jobs end with
their client, and everything ends with the process that started the server. `jobs` finds a client's job, for whoever
measures or kills processes by their parents.

Linux only. The lowest layer: nothing here imports other parts of reca.
"""

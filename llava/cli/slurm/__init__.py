"""What vila-run is made of: a request becomes a job script; the job runs and restarts itself; somebody follows.

times, request    what was asked for
script            the request as a job script that `sbatch` takes
client            the commands of SLURM
follow            the log and the state of a submitted job, until its end
job               the one process of the allocation: starts the command on all nodes, tells it to stop, restarts it
task              the process on each node around the command
attempts          what every attempt ended with, and whether there is another
local             the same without SLURM
"""

"""Rehearse the failure of a director; `exercise.run_drill` does all of it.

A drill builds a client, two directors and three real servers in private network
namespaces, drives real traffic through the virtual address, makes one director fail,
and tells what that cost. It is not part of a running director.

`exercise` is a drill from command to exit code and `rehearsal` its course;
`laboratory` makes the networks and `seclusion` the private world around them; `client`,
`realserver` and `tunnelend` are the programs in there, `directors` runs the real one;
`recording` is what they saw and `timeline` the judgement; `report`, `page` and
`drawing` are what a person sees of it.
"""

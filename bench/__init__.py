"""Measure a director against a bare packet loop; ``python -m bench`` does all of it.

A figure of one machine says little, so what is printed are ratios to yardsticks that run
in the same laboratory, in turns with the director: `yardstick` for traffic, no director
at all for new connections, an empty call for time without I/O. It asserts nothing and is
no test: a ratio below its target is shown as such and the exit code stays 0.

`course` is a run from command to report and `laboratory` the networks; `carriers` are the
programs that are compared; `bulk`, `small` and `churn` are kinds of traffic, each with both
its ends; `footprint` and `processing` need no network and share the frames of `handmade`;
`report` is what a person sees.

What many connections and services cost is asked by a command of its own, `python -m
bench.scale`: it needs no network and no privileges, but some minutes and two gigabytes.
`crowd` is the director it feeds, `pauses` how long one call keeps everything waiting.
"""

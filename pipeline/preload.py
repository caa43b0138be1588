"""Imported once by the server that worker processes are forked from; nothing else imports it."""

import pipeline.evaluation.run
import pipeline.training  # noqa: F401
from models.d3rlpy_baselines import import_d3rlpy

import_d3rlpy()

"""Judgments of items: N draws each, from a model in this process or from a server.

decoding decodes N rows a prompt and computes the distribution of a verdict; prefix keeps one copy of the prompt for them, ways
serves models that cannot share it; server asks an OpenAI-compatible server; draws has what all share: resume, order, seeds."""

# ruff: noqa: F401
from srlib.sample.decoding import decode, filled, judgments, score_candidates, score_distributions, verdicts
from srlib.sample.draws import DrawsError, Sampling, collect, flip_summary, redraw, tokens_of, uniforms
from srlib.sample.server import Server, server_judgments

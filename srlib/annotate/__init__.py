"""Notebook 08: whose rationales do people, and a judge that compares, prefer?

preferences   the items that two arms can be compared on, a judge's preferences in both orders, win rates
session       the blind annotation page (annotate.js, annotate.css), its answers, and what they say about the arms
"""

from srlib.annotate.preferences import judge_preferences, side_by_side, win_rates
from srlib.annotate.session import CRITERIA, Session, Vote, blind, read_votes

__all__ = ["CRITERIA", "Session", "Vote", "blind", "judge_preferences", "read_votes", "side_by_side", "win_rates"]

"""Use a vector: edits of the stream, conditions, rules and steered generation."""

from steerlens.models.hooking import Attachment
from steerlens.steering import hooks, places, schedules, similarities
from steerlens.steering.batch_plans import BatchPlan, stacked
from steerlens.steering.chat import Chat
from steerlens.steering.condition_search import ConditionSearch, search_conditions
from steerlens.steering.conditions import Condition, Gate
from steerlens.steering.evidence import with_evidence
from steerlens.steering.generation import generate, stream
from steerlens.steering.plan_files import load_plan, save_plan
from steerlens.steering.positions import Positions
from steerlens.steering.recipes import CAST, Recipe, find_condition
from steerlens.steering.rules import apply_rules, parse_rules
from steerlens.steering.sampling import Sampling
from steerlens.steering.soft_gates import SoftGate
from steerlens.steering.steering import Steering, steering_hooks
from steerlens.steering.topics import Topics, TopicScores, extract_topics, score_topics
from steerlens.steering.transcripts import GateReport, GateTimeline, Replies, TokenGateReport
from steerlens.steering.turns import Turn

__all__ = [
    "CAST",
    "Attachment",
    "BatchPlan",
    "Chat",
    "Condition",
    "ConditionSearch",
    "Gate",
    "GateReport",
    "GateTimeline",
    "Positions",
    "Recipe",
    "Replies",
    "Sampling",
    "SoftGate",
    "Steering",
    "TokenGateReport",
    "TopicScores",
    "Topics",
    "Turn",
    "apply_rules",
    "extract_topics",
    "find_condition",
    "generate",
    "hooks",
    "load_plan",
    "parse_rules",
    "places",
    "save_plan",
    "schedules",
    "score_topics",
    "search_conditions",
    "similarities",
    "stacked",
    "steering_hooks",
    "stream",
    "with_evidence",
]

"""Rewards for answers, with the signature that TRL gives to reward functions: named ones, a reward model, or a user's function."""

from .base import Reward, total_rewards
from .loading import NAMED, check_columns, load_rewards

__all__ = ["NAMED", "Reward", "check_columns", "load_rewards", "total_rewards"]

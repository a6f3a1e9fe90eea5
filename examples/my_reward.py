#!/usr/bin/env python3
"""A reward of one's own: one request a line on stdin, one answer a line on stdout.

    arriero score --reward program --set 'command=["python3", "examples/my_reward.py"]' \\
        --input completions.jsonl --output scored.jsonl

docs/rewards.md describes the lines.
"""

import json
import sys

# Nothing but answers may stand on stdout: what libraries print goes to stderr.
answers, sys.stdout = sys.stdout, sys.stderr


def reward(prompt, completion, checks):
    """Half for words that are not repeated, half for staying within 30 words.

    prompt: list of {"role": …, "content": …}; completion: text; checks: what the prompt gives scorers to check, or None.
    Returns the reward, and components for the metrics.
    """
    words = completion.lower().split()
    if not words:
        raise ValueError("there is nothing to judge")
    distinct = len(set(words)) / len(words)
    brief = min(1.0, 30 / len(words))
    return (distinct + brief) / 2, {"distinct": distinct, "brief": brief}


for line in sys.stdin:
    request = json.loads(line)
    answer = {"id": request["id"]}
    try:
        score, components = reward(request["prompt"], request["completion"], request["checks"])
        answer.update(reward=score, components=components)
    except ValueError as error:
        # This completion has no reward; on_error says what becomes of it. Any other error ends this program, which is
        # then started again.
        answer["error"] = str(error)
    print(json.dumps(answer), file=answers, flush=True)

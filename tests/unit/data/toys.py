"""Records and pictures small enough to check by hand."""

import numpy as np

SIZE = 16


def grey(value: int) -> np.ndarray:
    """A picture that can be recognised by its shade."""
    return np.full((SIZE, SIZE, 3), value, dtype=np.uint8)


def record(episode: str, step: int, num_frames: int, answer: str, task: str = "Go to the red ball.") -> dict:
    frames = [f"{episode}/frame_{i}.png" for i in range(num_frames)]
    return {"video_id": f"{episode}-{step}", "q": task, "a": answer, "frames": frames}


FORWARD = "The next action is move forward 75 cm."
LEFT = "The next action is turn left 30 degree."
STOP = "I think I should stop because I have finished the instruction."


def episode_records(episode: str = "7") -> list[dict]:
    """Left 30, forward 75, stop: seen after 1, 3 and 6 frames."""
    answers = [(1, LEFT), (3, FORWARD), (6, STOP)]
    return [record(episode, n, n, answer) for n, answer in answers]

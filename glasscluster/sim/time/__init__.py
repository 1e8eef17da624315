"""From a recording to seconds: costs, replay, the timeline and what can be asked of it. Reads a recording."""

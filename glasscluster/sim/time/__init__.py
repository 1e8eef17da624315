"""From a recording to seconds: costs, replay, and the timeline with everything that is computed from it."""

"""Any method on somebody's own video, or picture with a sound."""

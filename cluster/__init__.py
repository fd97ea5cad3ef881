"""Ray and the front door: configuration, executors, gateway, admission, assignment, controller, launch."""

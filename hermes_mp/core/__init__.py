"""The minds of the agents: events and a time in, actions out. Pure: no clock, socket, file, process, torch."""

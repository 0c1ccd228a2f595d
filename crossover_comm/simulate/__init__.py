"""Simulator: which topology and algorithm to take, before a machine is booked.

``python -m crossover_comm.simulate consensus`` measures how fast each topology averages,
``... accuracy`` trains a small real model by many virtual workers, ``... time`` predicts the time
of a step. All draw from the schedules that the engine runs.
"""

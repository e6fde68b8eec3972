"""What a stage costs: bytes and seconds, as pure functions of numbers.

memory       model states of one rank: parameters, gradients, master copies, optimizer state
peak         the moment of a step at which most is alive
disk         checkpoints and the export
gpu_kinds    what the cards are said to do
step_time    seconds of a step, with the assumptions
"""

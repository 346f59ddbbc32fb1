"""The bus between a guest and the service OS: control messages, ring buffers, channels (Hyper-V's VMBus)."""

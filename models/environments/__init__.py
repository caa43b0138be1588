"""Sessions with user models: the batched engine, candidate recall, GoalRec's variants, and gymnasium environments."""


def register() -> None:
    """Make the environments known to ``gymnasium.make`` and ``make_vec``, which then take their arguments by name."""
    import gymnasium

    for name, module, kind in (("Session", "gym", "Hindsight"), ("VirtualTaobao", "virtual_taobao", "VirtualTaobao")):
        if f"Hindsight/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                id=f"Hindsight/{name}-v0",
                entry_point=f"models.environments.{module}:{kind}Env",
                vector_entry_point=f"models.environments.{module}:{kind}VectorEnv",
            )

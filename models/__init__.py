"""The registries. Listing them imports no torch: a value is ``"module:ConfigClass"``."""

AGENTS = {
    "random": "models.heuristics:RandomConfig",
    "popularity": "models.heuristics:PopularityConfig",
    "logged_order": "models.heuristics:LoggedOrderConfig",
    "ideal": "models.heuristics:IdealConfig",
    "oracle_myopic": "models.heuristics:OracleMyopicConfig",
    "oracle_farsighted": "models.heuristics:OracleFarsightedConfig",
    "goalrec_off": "models.goalrec:GoalRecConfig",
    "deeppage_off": "models.deeppage:DeepPageConfig",
    "bc": "models.d3rlpy_baselines:BCConfig",
    "td3_bc": "models.d3rlpy_baselines:TD3PlusBCConfig",
    "iql": "models.d3rlpy_baselines:IQLConfig",
    "cql": "models.d3rlpy_baselines:CQLConfig",
    "gru4rec": "models.gru4rec:GRU4RecConfig",
    "sasrec": "models.sasrec:SASRecConfig",
    "lambdamart": "models.lambdamart:LambdaMARTConfig",
    "greedy_simulator": "models.greedy_simulator:GreedySimulatorConfig",
}

SIMULATORS = {  # user models that are fitted on a log
    "rnn": "models.simulators.rnn:RNNConfig",
    "attention": "models.simulators.attention:AttentionConfig",
    "feedback": "models.simulators.feedback:FeedbackConfig",
}
WORLDS = {  # user models that are what they are: a shop whose truth is known, and published weights
    "storefront": "models.simulators.storefront:StorefrontConfig",
    "virtual_taobao": "models.simulators.virtual_taobao:VirtualTaobaoConfig",
}

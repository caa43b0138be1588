"""The pyarrow schema of every published table: the one place where a column is defined.

Ids: ``user_id`` and ``item_id`` are the log's own, as text. ``user_key`` and ``item_key`` are 63-bit hashes of them
(``key64`` in warehouse.py), safe to publish. ``user`` and ``item`` are dense indices of the training window, 0 = not
seen there. All times are UTC, in microseconds. Feedback codes are those of ``models.feedback.Feedback``.
"""

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
EVENT_TYPES = ("impression", "click", "cart", "favorite", "purchase", "rating", "watch")
WINDOWS = ("1h", "6h", "24h", "1w")  # look-back windows of the point-in-time features
COUNTERS = (  # what a list ``counters`` holds: of an item since the log began, then columns of features
    "impressions",
    "positives",
    *(f"item_{name}_{window}" for window in WINDOWS for name in ("impressions", "positives", "ctr")),
    "item_age_hours",
)
NDCG_CUTOFFS = (5, 10, 20, 40)
HIT_CUTOFFS = (1, 5, 10)
RERANK_METRICS = (
    "map",
    "mrr",
    *(f"ndcg_{k}" for k in NDCG_CUTOFFS),
    *(f"ndcg_reward_{k}" for k in NDCG_CUTOFFS),
    "precision_20",
    "recall_20",
    "f1_20",
    *(f"hit_{k}" for k in HIT_CUTOFFS),
)
ROLLOUT_METRICS = (
    "return",  # sum of rewards, undiscounted
    "depth",  # pages
    "clicks",
    "purchases",
    "ctr",
    "predicted_return",  # what the agent's critic expects at the first page; null without one
    "discounted_return",  # realised, at the critic's own discount
    "overestimation",  # predicted_return - discounted_return
    "diversity",  # 1 - mean cosine between the items of a page
    "repeat_rate",  # of the shown items, those that the session had shown before
    "out_of_support",  # of the shown items, those that the simulator hardly saw when it was fitted
    "disagreement",  # spread of the ensemble's P(positive) on shown items, relative to its mean
)


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


_ITEMS = pa.list_(pa.int32())
_CODES = pa.list_(pa.int8())
_FLOATS = pa.list_(pa.float32())
_NUMBERS = pa.list_(pa.float64())
_STATE = {  # what a ranker knows just before a page; lists run from oldest to newest
    "user_features": _FLOATS,
    "initial_items": _ITEMS,
    "initial_feedback": _CODES,
    "history_items": _ITEMS,
    "history_feedback": _CODES,
    "skipped_items": _ITEMS,
    "page_items": _ITEMS,  # earlier pages of the session, flattened, newest last
    "page_feedback": _CODES,
}
_PROVENANCE = {
    "data_hash": pa.string(),
    "code_hash": pa.string(),
    "config_hash": pa.string(),
    "commit": pa.string(),
    "versions": pa.string(),
}

SCHEMAS: dict[str, pa.Schema] = {
    "manifest": _schema(
        path=pa.string(),
        kind=pa.string(),  # events, items, users or pools
        hash=pa.string(),
        size=pa.int64(),
        rows=pa.int64(),
        partitions=pa.list_(pa.string()),  # that its usable events fall into
    ),
    "events": _schema(
        event_id=pa.int64(),  # hash of the whole fact: the same fact twice has one id
        user_id=pa.string(),
        item_id=pa.string(),
        event_ts=TIME,
        event_type=pa.string(),  # impression, click, cart, favorite, purchase, rating, watch
        value=pa.float64(),  # price, rating, watch ratio; null where the event has none
        session_id=pa.string(),  # the log's own, or null
        request_id=pa.string(),  # the page or request that showed the item, or null
        position=pa.int32(),  # 0-based slot on that page, or null
        propensity=pa.float64(),  # of this item in this slot given the slots above, or null
        category=pa.string(),  # what this row says of its item, or null
        brand=pa.string(),
        shop=pa.string(),
        source=pa.string(),
        event_date=pa.date32(),
    ),
    "rejects": _schema(file=pa.string(), line=pa.int64(), raw=pa.string(), reason=pa.string()),
    "ingest_counts": _schema(  # one row a raw events file
        path=pa.string(),
        rows_in=pa.int64(),  # raw records, counted without parsing them
        unpacked=pa.int64(),  # facts beyond the first of a record that holds several
        events=pa.int64(),
        duplicates=pa.int64(),
        rejects=pa.int64(),  # rows_in + unpacked = events + duplicates + rejects
        left_out=pa.int64(),  # of the rejects: what the experiment chose to leave out, as by its time range
    ),
    "mentions": _schema(  # one row a thing that a partition's showings say of an item
        item_id=pa.string(),
        category=pa.string(),
        brand=pa.string(),
        shop=pa.string(),
        first_ts=TIME,  # when they first said it
    ),
    "pools": _schema(  # one row a logged request: what its page could have been composed of
        request_id=pa.string(),
        item_ids=pa.list_(pa.string()),
        logits=_NUMBERS,  # of the ranker that drew the page, softmax without replacement; null where not logged
    ),
    "impressions": _schema(
        session_id=pa.int64(),
        user_id=pa.string(),
        item_id=pa.string(),
        page=pa.int32(),  # 0-based page of the session
        row=pa.int16(),
        col=pa.int16(),
        position=pa.int32(),  # 0-based position in the session: order of showing
        feedback=pa.string(),  # skip, click, favorite, cart, purchase: the best that came of it
        reward=pa.float32(),
        propensity=pa.float64(),
        page_ts=TIME,  # when the page was shown
        impression_ts=TIME,
        positive_ts=TIME,  # when it was first known to be positive, or null
    ),
    "sessions": _schema(
        session_id=pa.int64(),
        user_id=pa.string(),
        start_ts=TIME,
        end_ts=TIME,
        pages=pa.int32(),
        impressions=pa.int32(),
        clicks=pa.int32(),  # impressions with positive feedback of any kind
        purchases=pa.int32(),
        reward=pa.float32(),
        capped=pa.bool_(),  # cut by the length cap (max_hours), not by the user
    ),
    "data_report": _schema(  # one row a figure about the log
        # overview, ingest, rejects, coverage, events_by_period …, spread, histogram, popularity, cold_start
        section=pa.string(),
        name=pa.string(),  # what is measured; a …_share lies between 0 and 1
        bucket=pa.string(),  # of which period, kind, quantile or range of lengths; an instant (UTC) where value is null
        value=pa.float64(),
        place=pa.int32(),  # the order of all rows, from 1
    ),
    "splits": _schema(
        split=pa.string(),  # train, validation, test
        start_ts=TIME,
        end_ts=TIME,  # exclusive
        sessions=pa.int64(),
        dropped=pa.int64(),  # sessions that start in it and cross its end
        usable=pa.int64(),  # kept sessions with positive and other feedback: those in which a ranking can be judged
    ),
    "items": _schema(
        item_id=pa.string(),
        item_key=pa.int64(),
        item=pa.int32(),
        title=pa.string(),
        category=pa.string(),
        category_code=pa.int32(),  # dense over the training window, 0 = unknown
        brand=pa.string(),
        shop=pa.string(),
        price=pa.float64(),
        listed_ts=TIME,  # when the item was released or uploaded, where the log says so
        features=_FLOATS,  # standardised on the items of the training window
        train_impressions=pa.int64(),
        train_positives=pa.int64(),
        counters=_FLOATS,  # impressions and positives so far, then item_… of features: when the training window ended
    ),
    "users": _schema(
        user_id=pa.string(), user_key=pa.int64(), user=pa.int32(), features=_FLOATS, train_sessions=pa.int64()
    ),
    "features": _schema(  # one row an impression; item embeddings and user portraits are joined by id, not copied
        session_id=pa.int64(),
        position=pa.int32(),
        item_id=pa.string(),
        impression_ts=TIME,
        item_category=pa.string(),
        item_brand=pa.string(),
        item_shop=pa.string(),
        **{
            f"item_{name}_{window}": kind
            for window in WINDOWS
            for name, kind in (("impressions", pa.int32()), ("positives", pa.int32()), ("ctr", pa.float32()))
        },
        item_age_hours=pa.float32(),  # since its first showing within a week, or null
        **{
            f"user_{name}_{window}": pa.int32()
            for window in WINDOWS
            for name in ("impressions", "positives", "categories")  # different categories of the positives
        },
        user_item_impressions_1w=pa.int32(),
        user_item_positives_1w=pa.int32(),
        user_category_positives_1w=pa.int32(),  # of the user in the item's category; null where that is unknown
        user_brand_positives_1w=pa.int32(),
        user_shop_positives_1w=pa.int32(),
        context_hour=pa.int8(),  # UTC, 0 to 23
        context_weekday=pa.int8(),  # UTC, 0 = Monday
        context_page=pa.int32(),
        context_position=pa.int32(),
        context_freshness_hours=pa.float32(),  # since the item was listed; null where unknown, or listed later
    ),
    "item_embeddings": _schema(item=pa.int32(), item_id=pa.string(), embedding=_FLOATS),
    "simulator_gate": _schema(  # one row a criterion that a fitted user model was held against
        simulator=pa.string(),
        side=pa.string(),  # train or judge
        head=pa.string(),  # click, exit, session
        criterion=pa.string(),
        value=pa.float64(),
        reference=pa.float64(),  # what it is compared with, or null
        passed=pa.bool_(),  # null: reported only
        n=pa.int64(),
    ),
    "simulator_reliability": _schema(  # one row a bin of a reliability plot
        simulator=pa.string(),
        head=pa.string(),
        group=pa.string(),  # all, or the decile of the item's popularity, 1 = least shown
        bin=pa.int32(),
        predicted=pa.float64(),
        observed=pa.float64(),
        count=pa.int64(),
    ),
    "simulator_answers": _schema(  # one row a prediction that the gate judged a user model by
        simulator=pa.string(),
        head=pa.string(),  # click: a shown item; exit: a page; answer: a shown item and one of three kinds of answer
        session_id=pa.int64(),
        row=pa.int64(),  # number of the prediction within its head, from 0, in the order of showing within a session
        group=pa.string(),  # decile of the item's popularity, 1 = least shown; of an answer its kind; null for an exit
        predicted=pa.float64(),  # probability of a positive answer, of leaving, or of this kind of answer
        observed=pa.bool_(),  # whether it happened
        base_rate=pa.float64(),  # what the rate in the fit window says; null for an answer
        popularity=pa.float64(),  # what the item's own rate in the fit window says; null but for a click
        members_mean=pa.float64(),  # of the predictions of the ensemble; null but for a click
        members_spread=pa.float64(),  # their standard deviation; null but for a click
    ),
    "simulator_twins": _schema(  # one row a simulated session beside the logged one whose pages it was shown
        simulator=pa.string(),
        session_id=pa.int64(),  # of the logged one
        twin=pa.int32(),  # number of the simulated one, from 0
        logged_pages=pa.int32(),  # that the user saw
        logged_ended=pa.bool_(),  # False: a length cap cut it
        simulated_pages=pa.int32(),  # that his twin saw
        simulated_ended=pa.bool_(),  # False: he was cut
        logged_rate=pa.float64(),  # share of positive answers on the pages that both saw, the user's
        simulated_rate=pa.float64(),  # the same, his twin's
    ),
    "trajectories": _schema(
        level=pa.string(),  # page: one row is one shown page of K slots
        relabel=pa.string(),  # original or hindsight
        session_id=pa.int64(),
        user=pa.int32(),
        step=pa.int32(),
        **_STATE,
        action=_ITEMS,  # the shown page, K slots
        feedback=_CODES,
        rewards=_FLOATS,
        reward=pa.float32(),
        propensities=_FLOATS,
        page_propensity=pa.float64(),
        counters=_FLOATS,  # of K items impressions and positives so far, then item_… of features: before it was shown
        horizon=pa.int32(),  # the step up to which the measurement looks (inclusive)
        measurement=_FLOATS,  # K × D, raw units
        goal=_FLOATS,  # K × D, unit length
        terminated=pa.bool_(),
        truncated=pa.bool_(),
    ),
    "candidates": _schema(  # one row a validation or test session: what leg 1 ranks
        session_id=pa.int64(),
        split=pa.string(),
        user=pa.int32(),
        user_key=pa.int64(),
        start_ts=TIME,
        user_features=_FLOATS,
        initial_items=_ITEMS,
        initial_feedback=_CODES,
        items=_ITEMS,  # distinct logged items in the order of their first showing
        item_keys=pa.list_(pa.int64()),
        positions=_ITEMS,
        feedback=_CODES,  # the best that came of it in the session
        rewards=_FLOATS,
        counters=_FLOATS,  # of each item impressions and positives so far, then item_… of features: before the session
    ),
    "training_log": _schema(
        agent=pa.string(), seed=pa.int32(), step=pa.int32(), metric=pa.string(), value=pa.float64()
    ),
    "validation_scores": _schema(  # one row a validation session of one training at one gradient step
        agent=pa.string(),
        trial=pa.string(),  # what tuning set, as learning_rate=0.001; null in the training itself
        seed=pa.int32(),
        step=pa.int32(),
        session_id=pa.int64(),
        value=pa.float64(),  # NDCG@20 with the rewards as gains, paged
    ),
    "rankings": _schema(
        session_id=pa.int64(),
        agent=pa.string(),
        seed=pa.int32(),
        mode=pa.string(),  # oneshot or paged
        item_key=pa.int64(),
        rank=pa.int32(),  # 1 = best
        score=pa.float32(),
        feedback=pa.int8(),
        reward=pa.float32(),
    ),
    "rerank": _schema(
        session_id=pa.int64(),
        user_key=pa.int64(),
        agent=pa.string(),
        seed=pa.int32(),
        mode=pa.string(),
        candidates=pa.int32(),
        positives=pa.int32(),
        status=pa.string(),  # scored, no_positive, all_positive; metrics are null unless scored
        **{name: pa.float64() for name in RERANK_METRICS},
    ),
    "rollout": _schema(
        setting=pa.string(),  # truth, or side/simulator/sessions
        simulator=pa.string(),  # truth: the storefront itself
        side=pa.string(),  # truth, judge or train
        sessions=pa.string(),  # natural, short, long, high_variance
        agent=pa.string(),
        seed=pa.int32(),
        user_key=pa.int64(),
        **{name: pa.float64() for name in ROLLOUT_METRICS},
    ),
    "coverage": _schema(  # how much of the catalogue an agent's roll-outs show
        setting=pa.string(),
        agent=pa.string(),
        seed=pa.int32(),
        episodes=pa.int64(),
        items_shown=pa.int64(),
        items_known=pa.int64(),
        items=_ITEMS,  # those that are shown
    ),
    "decisions": _schema(  # one row a logged page of the test window: what leg 3 judges policies on
        session_id=pa.int64(),
        user_key=pa.int64(),
        step=pa.int32(),  # page of the session, from 0
        **_STATE,
        candidates=_ITEMS,  # R items that could have been shown: dense indices
        candidate_keys=pa.list_(pa.int64()),
        slate=_ITEMS,  # K numbers among the candidates, -1 in an empty slot
        feedback=_CODES,
        rewards=_FLOATS,
        behaviour=_NUMBERS,  # K propensities, each given the slots above
        behaviour_marginal=_NUMBERS,  # K propensities of the item in the slot, whatever the other slots show
        first_slot=_NUMBERS,  # R propensities of the candidates in the first slot
        reward_level=_NUMBERS,  # R: what a model, fitted before the test window, expects of a candidate mid-page …
        reward_trend=_NUMBERS,  # R: … and how that changes from the middle of the page to its end
        counters=_FLOATS,  # of R items impressions and positives so far, then item_… of features: before the page
        pool=pa.string(),  # where the candidates come from: logged, catalogue or sampled
        propensities=pa.string(),  # logged, "logged by slot" (marginal ones only) or fitted
    ),
    "ope_calibration": _schema(  # one row a bin of the behaviour policy's reliability plot
        bin=pa.int32(),
        predicted=pa.float64(),
        observed=pa.float64(),
        count=pa.int64(),
    ),
    "ope_chances": _schema(  # one row a slot behind ope_calibration: what could have been shown there, and what was
        session_id=pa.int64(),
        step=pa.int32(),  # page of the session, from 0
        slot=pa.int32(),  # from 1
        shown=pa.int32(),  # number among the candidates, from 0
        chances=_NUMBERS,  # R, of the behaviour policy; null for a candidate that stands above, or that is none
    ),
    "ope_pages": _schema(  # one row a logged page under one agent and seed: what slate estimates are computed from
        agent=pa.string(),
        seed=pa.int32(),
        session_id=pa.int64(),
        user_key=pa.int64(),
        step=pa.int32(),
        filled=pa.list_(pa.bool_()),  # [K], as the other lists; an empty slot has reward 0 and propensities of 1
        reward=_NUMBERS,
        behaviour=_NUMBERS,
        target=_NUMBERS,
        behaviour_marginal=_NUMBERS,
        target_marginal=_NUMBERS,
        q_logged=_NUMBERS,
        v_target=_NUMBERS,
        fqe_weight=pa.float64(),  # FQE: the sum of this times the page's reward over the sessions; null: left out
        overlap=pa.float64(),  # of the agent's chances in the first slot, those of items that the log could well show
    ),
    "ope": _schema(  # one row an estimate of one agent and seed
        agent=pa.string(),
        seed=pa.int32(),
        setting=pa.string(),  # slot, page: reward of one of them in the states of the log; session: of whole sessions
        estimator=pa.string(),
        value=pa.float64(),  # not to be read as one unless supported
        ci_low=pa.float64(),
        ci_high=pa.float64(),
        gain=pa.float64(),  # value minus what the log itself earned in the same rows
        gain_low=pa.float64(),
        gain_high=pa.float64(),
        n=pa.int64(),  # slots, pages or sessions
        users=pa.int64(),
        ess=pa.float64(),
        tail_index=pa.float64(),
        max_weight=pa.float64(),
        mean_weight=pa.float64(),
        mean_weight_error=pa.float64(),
        clipped_share=pa.float64(),
        overlap=pa.float64(),  # share of the agent's first slots that the log fills so with a chance above the floor
        supported=pa.bool_(),
        reason=pa.string(),  # why not, or empty
        temperature=pa.float64(),  # of the Plackett-Luce policy that the ranker was smoothed into
        propensities=pa.string(),  # logged, logged by slot, or fitted
        pool=pa.string(),  # logged, catalogue or sampled
    ),
    "ope_proof": _schema(  # one row a claim about an estimator that was held against the storefront's truth
        claim=pa.string(),  # on_policy, coverage, bias, rmse_slope, doubly_robust, refused, supported, selection …
        setting=pa.string(),  # page: first pages of 10 slots; item: pages of one item; session: sessions of such pages
        estimator=pa.string(),
        target=pa.string(),  # the policy that was judged
        n=pa.int64(),  # users of each log, with one page, item or session each
        logs=pa.int64(),  # replications that count
        truth=pa.float64(),  # of the policy's value; null where none is asked for
        value=pa.float64(),  # what was measured
        least=pa.float64(),  # what the claim allows; null where it has no such bound
        most=pa.float64(),
        holds=pa.bool_(),
    ),
    "ope_proof_logs": _schema(  # one row an estimate from one simulated log that a claim of ope_proof rests on
        claim=pa.string(),  # with setting, estimator and target it names one row of ope_proof
        setting=pa.string(),  # page, item or session
        estimator=pa.string(),
        target=pa.string(),  # whom the claim is about
        ranker=pa.string(),  # the policy that was judged; one of several where the claim is about selection
        n=pa.int64(),  # users of the log, with one page, item or session each
        log=pa.int64(),  # number among the claim's logs of that n, from 0
        truth=pa.float64(),  # of the ranker's value; null where none is asked for
        value=pa.float64(),  # the estimate
        ci_low=pa.float64(),  # of 95 %, clustered by user; null, as supported, where the claim is about values alone
        ci_high=pa.float64(),
        supported=pa.bool_(),
    ),
    "goal_sweep": _schema(  # one row an episode of one trained model under one goal; rollout has the other rankers
        setting=pa.string(),  # truth, or side/simulator/sessions
        agent=pa.string(),
        seed=pa.int32(),
        goal=pa.string(),  # the goal in words
        weights=pa.string(),  # its raw weight of each measurement, as JSON
        user_key=pa.int64(),
        **{name: pa.float64() for name in ("return", "clicks", "purchases", "depth")},
    ),
    "decoding": _schema(  # one row an episode under one decoder: does this data need RL at all?
        setting=pa.string(),
        decoder=pa.string(),  # greedy, best_page or lookahead: see pipeline/evaluation/decoding.py
        user_key=pa.int64(),
        **{name: pa.float64() for name in ("return", "depth")},
    ),
    "comparisons": _schema(  # one row a paired comparison that a verdict rests on
        agent=pa.string(),
        against=pa.string(),
        control=pa.string(),  # what the other is there for: discount_0, supervised, greedy_simulator, reference
        leg=pa.string(),
        setting=pa.string(),
        metric=pa.string(),
        value=pa.float64(),
        against_value=pa.float64(),
        difference=pa.float64(),
        difference_low=pa.float64(),
        difference_high=pa.float64(),
        effect_size=pa.float64(),  # Cohen's d of the users' differences
        share_better=pa.float64(),  # of the users, a tie counting half
        p_value=pa.float64(),  # sign-flip permutation test over users
        p_adjusted=pa.float64(),  # Holm over all rows of the same family
        family=pa.string(),  # rl_helps: what the rule of that verdict reads; beside_it: the rest
        n=pa.int64(),
        users=pa.int64(),
        seeds=pa.int32(),
        seed_low=pa.float64(),  # the least of the seeds' own differences
        seed_high=pa.float64(),
    ),
    "agreement": _schema(  # one row a pair of leaderboard columns
        first_leg=pa.string(),
        first_setting=pa.string(),
        second_leg=pa.string(),
        second_setting=pa.string(),
        agents=pa.int64(),
        tau=pa.float64(),  # Kendall's tau-b; null with fewer than three agents
        p_value=pa.float64(),
        opposed=pa.int64(),  # pairs of agents ordered oppositely with the intervals apart in both
        sentence=pa.string(),
    ),
    "verdicts": _schema(  # one row a question that the report answers
        verdict=pa.string(),  # rl_helps, best_agent, needs_rl, legs_agree, overestimation, gate_predicts
        subject=pa.string(),  # an agent, a world (needs_rl, gate_predicts), or empty
        holds=pa.bool_(),  # null: no verdict
        headline=pa.string(),
        reason=pa.string(),  # the numbers that it rests on, or what is missing
        place=pa.int32(),  # the order of all rows, from 1
    ),
    "leaderboard": _schema(
        agent=pa.string(),
        leg=pa.string(),  # rerank, rollout, ope
        setting=pa.string(),  # oneshot, paged, truth …
        metric=pa.string(),
        value=pa.float64(),
        ci_low=pa.float64(),
        ci_high=pa.float64(),
        n=pa.int64(),  # sessions (or episodes) a seed
        users=pa.int64(),
        seeds=pa.int32(),
        seed_sd=pa.float64(),  # standard deviation of the seeds' means
        against=pa.string(),  # the reference of the paired difference
        difference=pa.float64(),
        difference_low=pa.float64(),
        difference_high=pa.float64(),
        p_value=pa.float64(),
        **_PROVENANCE,
    ),
    "unsupported": _schema(leg=pa.string(), reason=pa.string()),
    "history": _schema(  # one row a main figure of a published leaderboard; the one table with a time stamp in it
        published_at=TIME,
        leaderboard=pa.string(),  # its fingerprint
        agent=pa.string(),
        leg=pa.string(),
        setting=pa.string(),
        metric=pa.string(),
        value=pa.float64(),
        ci_low=pa.float64(),
        ci_high=pa.float64(),
        n=pa.int64(),
        **{name: kind for name, kind in _PROVENANCE.items() if name != "versions"},
    ),
}


def empty(table: str) -> pa.Table:
    """A table of no rows with the published columns of ``table``."""
    return SCHEMAS[table].empty_table()

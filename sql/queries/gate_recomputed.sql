-- The gate's numbers computed again in SQL from the rows of gate_rows, beside the published ones: log-loss, Brier score,
-- AUC and calibration errors, the bins of the reliability plots, and how long and how often positive simulated sessions
-- are. A bin holds as many predictions as published, by rising prediction. (The limits, the disagreement and the answers
-- by kind need other data; AUC's interval and the distances between positive rates are not among them.)
with ranked as (
    select
        simulator,
        head,
        predicted,
        observed::int as observed,
        if(observed, predicted, 1 - predicted) as likelihood,
        rank() over (partition by simulator, head order by predicted)
        + (count(*) over (partition by simulator, head, predicted) - 1) / 2 as rank
    from simulator_answers
),
scores as (
    select
        simulator,
        head,
        count(*) as n_rows,
        -- The gate cuts probabilities of 0: those of clicks at the machine's epsilon, those of exits at its least number.
        avg(-ln(greatest(likelihood, if(head = 'click', 2.220446049250313e-16, 2.2250738585072014e-308)))) as log_loss,
        avg((predicted - observed) ** 2) as brier,
        (sum(rank * observed) - sum(observed) * (sum(observed) + 1) / 2)
        / nullif(sum(observed) * sum(1 - observed), 0) as auc
    from ranked
    group by simulator, head
),
grouped as (
    select simulator, head, unnest(['all', "group"]) as "group", predicted, observed::int as observed
    from simulator_answers
),
placed as (
    select *, row_number() over (partition by simulator, head, "group" order by predicted) as place
    from grouped
),
published_bins as (
    select *, sum("count") over (partition by simulator, head, "group" order by bin) as last_place
    from simulator_reliability
),
bins as (
    select
        simulator,
        head,
        "group",
        published_bins.bin,
        count(*) as n_rows,
        avg(placed.predicted) as predicted,
        avg(placed.observed) as observed
    from published_bins
    inner join placed using (simulator, head, "group")
    where placed.place > published_bins.last_place - published_bins.count
        and placed.place <= published_bins.last_place
    group by simulator, head, "group", published_bins.bin
),
calibration as (
    select
        simulator,
        head,
        if("group" = 'all', 'ece', 'ece_decile_' || "group") as figure,
        sum(n_rows)::bigint as n_rows,
        sum(n_rows * abs(predicted - observed)) / sum(n_rows) as recomputed
    from bins
    group by simulator, head, "group"
),
rates as (
    select
        simulator,
        'session' as head,
        count(distinct session_id) as n_rows,
        avg(simulated_rate) as positive_rate,
        abs(avg(simulated_rate) / nullif(avg(logged_rate), 0) - 1) as positive_rate_gap
    from simulator_twins
    group by simulator
),
lives as (
    select distinct simulator, session_id, true as logged, session_id as unit, logged_pages as pages, logged_ended as ended
    from simulator_twins
    union all
    select simulator, session_id, false as logged, twin as unit, simulated_pages as pages, simulated_ended as ended
    from simulator_twins
),
hazards as (  -- of Kaplan and Meier: who ends after so many pages, of those who reached them
    select
        simulator,
        logged,
        pages,
        count(*) filter (ended) / sum(count(*)) over (partition by simulator, logged order by pages desc) as hazard
    from lives
    group by simulator, logged, pages
),
horizons as (  -- twice the longest logged session, or its length where a cap cut one as long
    select
        simulator,
        count(*) as n_rows,
        max(pages) * if(max(pages) > coalesce(max(pages) filter (not ended), 0), 2, 1) as horizon
    from lives
    where logged
    group by simulator
),
times as (
    select simulator, n_rows, horizon, unnest(range(horizon + 1)) as time
    from horizons
),
survival as (
    select
        times.simulator,
        times.n_rows,
        times.time < times.horizon as inside,
        coalesce(product(1 - hazards.hazard) filter (hazards.logged), 1) as logged,
        coalesce(product(1 - hazards.hazard) filter (not hazards.logged), 1) as simulated
    from times
    left join hazards on hazards.simulator = times.simulator and hazards.pages <= times.time
    group by times.simulator, times.n_rows, times.horizon, times.time
),
lengths as (
    select
        simulator,
        'session' as head,
        n_rows,
        max(abs(logged - simulated)) as length_ks,
        sum(abs(logged - simulated)) filter (inside) as length_wasserstein,
        sum(simulated) filter (inside) as mean_pages
    from survival
    group by simulator, n_rows
),
criteria as (
    from (unpivot scores on log_loss, brier, auc into name figure value recomputed)
    union all by name
    from (unpivot rates on positive_rate, positive_rate_gap into name figure value recomputed)
    union all by name
    from (unpivot lengths on length_ks, length_wasserstein, mean_pages into name figure value recomputed)
    union all by name
    from calibration
),
recomputed as (
    select
        simulator,
        head,
        simulator_gate.criterion as figure,
        null as "group",
        null as bin,
        criteria.n_rows,
        simulator_gate.n,
        criteria.recomputed,
        simulator_gate.value
    from criteria
    inner join simulator_gate using (simulator, head)
    where split_part(simulator_gate.criterion, '_vs_', 1) = criteria.figure
    union all by name
    select
        simulator,
        head,
        unnest(['predicted', 'observed']) as figure,
        "group",
        bin,
        bins.n_rows,
        published.count as n,
        unnest([bins.predicted, bins.observed]) as recomputed,
        unnest([published.predicted, published.observed]) as value
    from bins
    inner join simulator_reliability as published using (simulator, head, "group", bin)
)
select simulator, head, figure, "group", bin, n_rows, n, recomputed, value, recomputed - value as error
from recomputed
order by simulator, head, "group" is not null, "group" = 'all' desc, try_cast("group" as integer), bin, figure

-- What the gate says of a user model's own sessions (head session), computed again in SQL from the rows of gate_rows
-- beside the published numbers: how long they are and how often positive, and the same of the logged ones (reference).
-- The limits of length_ks and positive_rate_gap are left out: they are settings.
with lives as (
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
    select simulator, horizon, unnest(range(horizon + 1)) as time
    from horizons
),
survival as (
    select
        times.simulator,
        times.time < times.horizon as inside,
        coalesce(product(1 - hazards.hazard) filter (hazards.logged), 1) as logged,
        coalesce(product(1 - hazards.hazard) filter (not hazards.logged), 1) as simulated
    from times
    left join hazards on hazards.simulator = times.simulator and hazards.pages <= times.time
    group by times.simulator, times.horizon, times.time
),
rates as (
    select
        simulator,
        avg(simulated_rate) as simulated,
        avg(logged_rate) as logged
    from simulator_twins
    group by simulator
),
rated as (
    select simulator, simulated_rate as rate, 1 as simulated, 0 as logged from simulator_twins
    union all
    select simulator, logged_rate, 0, 1 from simulator_twins
),
counted as (
    select simulator, rate, sum(simulated) as simulated, sum(logged) as logged
    from rated
    group by simulator, rate
),
steps as (  -- how far the two distributions are apart from one rate to the next
    select
        simulator,
        abs(sum(simulated - logged) over (partition by simulator order by rate))
        / sum(simulated) over (partition by simulator) as gap,
        lead(rate) over (partition by simulator order by rate) - rate as width
    from counted
),
numbers as (
    select simulator, 'positive_rate' as criterion, unnest(['value', 'reference']) as number,
        unnest([simulated, logged]) as recomputed
    from rates
    union all
    select simulator, 'positive_rate_gap', 'value', abs(simulated / nullif(logged, 0) - 1) from rates
    union all
    select simulator, unnest(['positive_rate_ks', 'positive_rate_wasserstein']), 'value',
        unnest([max(gap), coalesce(sum(gap * width), 0)])
    from steps group by simulator
    union all
    select simulator, unnest(['length_ks', 'length_wasserstein', 'mean_pages']), 'value',
        unnest([
            max(abs(logged - simulated)),
            sum(abs(logged - simulated)) filter (inside),
            sum(simulated) filter (inside)
        ])
    from survival group by simulator
    union all
    select simulator, 'mean_pages', 'reference', sum(logged) filter (inside) from survival group by simulator
)
select
    simulator,
    gate.criterion,
    numbers.number,
    horizons.n_rows,
    gate.n,
    numbers.recomputed,
    if(numbers.number = 'value', gate.value, gate.reference) as published,
    recomputed - published as error
from numbers
inner join simulator_gate as gate using (simulator, criterion)
inner join horizons using (simulator)
where gate.head = 'session'
order by simulator, gate.criterion, numbers.number

-- What the gate says of a user model's predictions, computed again in SQL from the rows of gate_rows beside the published
-- numbers: of each criterion its value and what it is held against (reference), of each bin of the reliability plots the
-- predicted and the observed rate. A bin holds as many predictions as published, by rising prediction. Left out are the
-- limits of the calibration errors: 100 draws of labels from the predictions, and a tolerance from the settings.
with forecasts as (
    select * from simulator_answers
    unpivot (p for forecast in (predicted, base_rate, popularity))
),
ranked as (
    select
        simulator,
        head,
        if(head = 'answer', "group", null) as kind,
        forecast,
        session_id,
        row,
        p,
        observed::int as observed,
        -- The gate cuts probabilities of 0: those of exits at the least number, all others at the machine's epsilon.
        greatest(if(observed, p, 1 - p), if(head = 'exit', 2.2250738585072014e-308, 2.220446049250313e-16)) as likelihood,
        rank() over (partition by simulator, head, kind, forecast order by p)
        + (count(*) over (partition by simulator, head, kind, forecast, p) - 1) / 2 as place,
        rank() over (partition by simulator, head, kind, forecast, observed order by p)
        + (count(*) over (partition by simulator, head, kind, forecast, observed, p) - 1) / 2 as place_of_own,
        count(*) over (partition by simulator, head, kind, forecast, observed) as own,
        count(*) over (partition by simulator, head, kind, forecast) - own as others
    from forecasts
),
components as (  -- of DeLong: the share of the other label's predictions that are on the right side of one
    select *, abs((place - place_of_own) / nullif(others, 0) - 1 + observed) as component
    from ranked
),
scores as (
    select
        simulator,
        head,
        kind,
        forecast,
        count(*) as n_rows,
        avg(-ln(likelihood)) as log_loss,
        avg((p - observed) ** 2) as brier,
        avg(component) filter (observed = 1) as auc
    from components
    group by simulator, head, kind, forecast
),
influences as (
    select
        simulator,
        head,
        components.session_id,
        sum((component - auc) / own) as influence,
        sum(-ln(likelihood)) as loss,
        count(*) as n_rows
    from components
    inner join scores using (simulator, head, forecast)
    where forecast = 'predicted' and head <> 'answer'
    group by simulator, head, components.session_id
),
intervals as (  -- 1.959964 standard errors of a mean whose terms are independent between sessions only
    select
        simulator,
        head,
        sum(influences.n_rows) as n_rows,
        1.959963984540054 * sqrt(count(*) / (count(*) - 1) * sum(influence ** 2)) as half
    from influences
    group by simulator, head
),
base_losses as (
    select simulator, session_id, sum(-ln(likelihood)) as base_loss
    from ranked
    where head = 'exit' and forecast = 'base_rate'
    group by simulator, session_id
),
excesses as (
    select *, loss - base_loss - n_rows * sum(loss - base_loss) over (partition by simulator)
        / sum(n_rows) over (partition by simulator) as excess
    from influences
    inner join base_losses using (simulator, session_id)
    where head = 'exit'
),
guesses as (  -- of the answers to one shown item
    select
        simulator,
        row,
        max_by(observed, predicted)::int as is_right,
        -ln(greatest(sum(predicted) filter (observed) / sum(predicted), 2.220446049250313e-16)) as loss
    from simulator_answers
    where head = 'answer'
    group by simulator, row
),
shares as (
    select simulator, "group" as kind, avg(observed::int) as share, count(*) as n_rows
    from simulator_answers
    where head = 'answer'
    group by simulator, kind
),
grouped as (
    select simulator, head, unnest(['all', "group"]) as "group", predicted, observed::int as observed
    from simulator_answers
    where head <> 'answer'
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
numbers as (
    select simulator, head, unnest(['log_loss', 'brier', 'auc']) as figure, 'value' as number, n_rows,
        unnest([log_loss, brier, auc]) as recomputed
    from scores where forecast = 'predicted' and head <> 'answer'
    union all
    select simulator, head, unnest(['log_loss', 'brier']) || '_vs_' || forecast, 'reference', n_rows,
        unnest([log_loss, brier])
    from scores where forecast <> 'predicted' and head = 'click'
    union all
    select simulator, head, 'auc', 'reference', n_rows, auc from scores where forecast = 'popularity'
    union all
    select simulator, head, unnest(['auc_low', 'auc_high']), 'value', intervals.n_rows,
        unnest([greatest(0, auc - half), least(1, auc + half)])
    from intervals inner join scores using (simulator, head) where forecast = 'predicted'
    union all
    select simulator, 'exit', 'log_loss_vs_base_rate', 'reference', sum(n_rows),
        sum(base_loss) / sum(n_rows) + 1.645 * sqrt(sum(excess ** 2)) / sum(n_rows)
    from excesses group by simulator
    union all
    select simulator, head, if("group" = 'all', 'ece', 'ece_decile_' || "group"), 'value', sum(n_rows),
        sum(n_rows * abs(predicted - observed)) / sum(n_rows)
    from bins group by simulator, head, "group"
    union all
    select simulator, head, 'disagreement', 'value', count(*), sum(members_spread) / sum(members_mean)
    from simulator_answers where head = 'click' group by simulator, head
    union all
    select simulator, head, 'auc_' || kind, 'value', n_rows, auc from scores where head = 'answer'
    union all
    select simulator, 'answer', unnest(['precision', 'log_loss']), 'value', count(*), unnest([avg(is_right), avg(loss)])
    from guesses group by simulator
    union all
    select simulator, 'answer', unnest(['precision', 'log_loss']), 'reference', any_value(n_rows),
        unnest([max(share), -sum(share * ln(share)) filter (share > 0)])
    from shares group by simulator
),
recomputed as (
    select
        simulator,
        head,
        gate.criterion as figure,
        null as "group",
        null as bin,
        numbers.number,
        numbers.n_rows,
        gate.n,
        numbers.recomputed,
        if(numbers.number = 'value', gate.value, gate.reference) as published
    from numbers
    inner join simulator_gate as gate using (simulator, head)
    where gate.criterion = numbers.figure
        or numbers.number = 'value' and split_part(gate.criterion, '_vs_', 1) = numbers.figure
    union all by name
    select
        simulator,
        head,
        'reliability' as figure,
        "group",
        bin,
        unnest(['predicted', 'observed']) as number,
        bins.n_rows,
        published.count as n,
        unnest([bins.predicted, bins.observed]) as recomputed,
        unnest([published.predicted, published.observed]) as published
    from bins
    inner join simulator_reliability as published using (simulator, head, "group", bin)
)
select simulator, head, figure, "group", bin, number, n_rows, n, recomputed, published, recomputed - published as error
from recomputed
order by simulator, head, "group" is not null, "group" = 'all' desc, try_cast("group" as integer), bin, figure, number

-- Counters of $sample items that differ from a plain recount of what lay strictly before the moment that they are of.
with told as (
    select * from counted
    order by md5_number_lower(place), place
    limit $sample
),
asked as (
    select place, item_id, ts, hours, if(hours = 0, '-infinity', ts - to_hours(hours)) as since
    from told, (select unnest([0, 1, 6, 24, 168]) as hours)  -- 0: since the log began
),
found as (
    select
        asked.place, asked.ts, hours,
        count(*) filter (where shown > 0) as impressions,
        count(*) filter (where positive > 0) as positives,
        min(facts.ts) filter (where shown > 0) as first_ts
    from asked
    left join facts on facts.item_id = asked.item_id and facts.ts < asked.ts and facts.ts >= asked.since
    group by asked.place, asked.ts, hours
),
recounted as (
    select
        place,
        flatten(list(
            if(hours = 0,
                [impressions, positives]::float[],
                [impressions, positives, coalesce(positives / nullif(impressions, 0), 0)]::float[])
            order by hours
        )) || [max((epoch_us(ts) - epoch_us(first_ts)) / 3_600_000_000) filter (where hours = 168)]::float[] as counters
    from found
    group by place
)
select
    place,
    concat(place, ' counts ', told.counters::varchar, ', but before it lay ', recounted.counters::varchar) as reason
from told
join recounted using (place)
where told.counters is distinct from recounted.counters
order by place

-- The single figures of the data report computed again, beside the published ones, from the rows that length_rows,
-- data_rows, ingest_rows and reject_rows list. Instants are in seconds since 1970. The counts of the periods are left
-- out, which data_rows lists one by one, and whether the shown set is constructed, which the source says.
with pairs as (
    select user_key, item_id, bool_or(feedback <> 'skip') as is_positive
    from impressions
    group by user_key, item_id
),
shares as (
    select
        count(*) as pairs,
        count(*) filter (is_positive) as positive_pairs,
        count(distinct user_key) * count(distinct item_id) as possible
    from pairs
),
of_events as (
    select
        count(*) as n_rows,
        unnest(['events', 'users', 'items', 'first_event', 'last_event']) as name,
        unnest([
            count(*), count(distinct user_key), count(distinct item_id),
            floor(epoch(min(event_ts))), floor(epoch(max(event_ts)))
        ]) as recomputed
    from events
),
of_sessions as (
    select
        count(*) as n_rows,
        unnest([
            'sessions', 'sessions_without_positive_share', 'sessions_of_positives_only_share',
            'sessions_cut_by_length_share'
        ]) as name,
        unnest([
            count(*), avg((clicks = 0)::int), avg((clicks = impressions)::int), avg(capped::int)
        ]) as recomputed
    from sessions
),
of_impressions as (
    select
        count(*) as n_rows,
        unnest(['impressions', 'positives', 'positives_share', 'impressions_with_propensity_share']) as name,
        unnest([
            count(*), count(*) filter (feedback <> 'skip'), avg((feedback <> 'skip')::int),
            avg((propensity is not null)::int)
        ]) as recomputed
    from impressions
),
of_pairs as (
    select
        pairs as n_rows,
        unnest(['pairs_shown_share', 'pairs_positive_share']) as name,
        unnest([pairs / nullif(possible, 0), positive_pairs / nullif(possible, 0)]) as recomputed
    from shares
),
of_files as (
    select
        count(*) as n_rows,
        unnest(['raw_files', 'rows_in', 'unpacked', 'events', 'duplicates', 'rejects', 'left_out']) as name,
        unnest([
            count(*), sum(rows_in), sum(unpacked), sum(events), sum(duplicates), sum(rejects), sum(left_out)
        ]) as recomputed
    from ingest_counts
),
reasons as (
    select regexp_replace(coalesce(reason, 'no reason given'), '"[^"]*"|''[^'']*''', '…', 'g') as reason
    from rejects
),
named as (
    select bucket from data_report where section = 'rejects'
),
of_rejects as (
    select
        'rows' as name,
        if(reason in (from named), reason, 'other reasons') as bucket,
        count(*) as n_rows,
        n_rows as recomputed
    from reasons
    group by bucket
),
of_columns as (
    select
        event_type as bucket,
        count(*) as n_rows,
        unnest(['session_id', 'request_id', 'position', 'propensity', 'value']) as name,
        unnest([
            count(session_id), count(request_id), count(position), count(propensity), count(value)
        ]) / count(*) as recomputed
    from events
    group by event_type
),
of_lengths as (
    select
        measure as name,
        count(*) as n_rows,
        unnest(['mean', 'min', 'p10', 'p25', 'p50', 'p75', 'p90', 'p99', 'max']) as bucket,
        unnest(
            [avg(length)]
            || quantile_disc(length, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1])::double[]
        ) as recomputed
    from lengths
    group by measure
),
bars as (
    select
        name,
        bucket,
        split_part(bucket, '–', 1)::bigint as low,
        split_part(bucket, '–', -1)::bigint as high
    from data_report
    where section = 'histogram'
),
of_bars as (
    select bars.name, bars.bucket, count(*) as n_rows, n_rows as recomputed
    from bars
    inner join lengths on lengths.measure = bars.name and lengths.length between bars.low and bars.high
    group by bars.name, bars.bucket
),
ranked as (
    select
        split_part(measure, '_', 1) as bucket,
        length,
        row_number() over (partition by measure order by length) as place,
        count(*) over (partition by measure) as items
    from lengths
    where measure in ('impressions_of_an_item', 'positives_of_an_item')
),
of_popularity as (
    select
        bucket,
        count(*) as n_rows,
        unnest(['top_1_percent_share', 'top_10_percent_share', 'gini']) as name,
        unnest([
            sum(length) filter (place > items - ceil(0.01 * items)) / sum(length),
            sum(length) filter (place > items - ceil(0.1 * items)) / sum(length),
            2 * sum(place * length) / (count(*) * sum(length)) - (count(*) + 1) / count(*)
        ]) as recomputed
    from ranked
    group by bucket
),
of_cold as (
    select
        count(*) as n_rows,
        unnest(if(
            measure = 'sessions_of_a_user',
            ['cold_users_share', 'cold_sessions_share'],
            ['cold_items_share', 'cold_impressions_share']
        )) as name,
        unnest([avg((earlier = 0)::int), sum(if(earlier = 0, length, 0)) / sum(length - earlier)]) as recomputed
    from lengths
    where measure in ('sessions_of_a_user', 'impressions_of_an_item') and length > earlier
    group by measure
),
figures as (
    select 'overview' as section, * from of_events
    union all by name
    select 'overview' as section, * from of_sessions
    union all by name
    select 'overview' as section, * from of_impressions
    union all by name
    select 'overview' as section, * from of_pairs
    union all by name
    select 'ingest' as section, * from of_files
    union all by name
    select 'rejects' as section, * from of_rejects
    union all by name
    select 'coverage' as section, * from of_columns
    union all by name
    select 'spread' as section, * from of_lengths
    union all by name
    select 'histogram' as section, * from of_bars
    union all by name
    select 'popularity' as section, * from of_popularity
    union all by name
    select 'cold_start' as section, * from of_cold
)
select
    section,
    name,
    published.bucket,
    figures.n_rows,
    figures.recomputed,
    coalesce(published.value, epoch((published.bucket || '+00')::timestamptz)) as published,
    figures.recomputed - coalesce(published.value, epoch((published.bucket || '+00')::timestamptz)) as error
from figures
inner join data_report as published using (section, name)
where published.bucket is not distinct from figures.bucket or published.value is null
order by published.place

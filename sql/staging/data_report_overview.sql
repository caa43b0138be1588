-- The log in single figures. The shares are of impressions, of sessions, or of all pairs of a user and a shown item.
with event_totals as (
    select
        coalesce(sum(events), 0) as events,
        strftime(min(first_ts), '%Y-%m-%d %H:%M:%S') as first_event,
        strftime(max(last_ts), '%Y-%m-%d %H:%M:%S') as last_event
    from event_counts
),
entity_totals as (
    select
        count(distinct key) filter (where entity = 'users') as users,
        count(distinct key) filter (where entity = 'items') as items
    from active
),
impression_totals as (
    select
        coalesce(sum(impressions), 0) as impressions,
        coalesce(sum(impressions) filter (where feedback <> 'skip'), 0) as positives,
        sum(propensities) as propensities
    from impression_counts
),
session_totals as (
    select
        count(*) as sessions,
        count(*) filter (where clicks = 0) as without_positive,
        count(*) filter (where clicks = impressions) as only_positives,
        count(*) filter (where capped) as capped
    from sessions
),
pairs as (
    select hash(user_id, item_id) as pair, bool_or(feedback <> 'skip') as is_positive
    from impressions
    group by pair
),
pair_totals as (
    select
        count(*) as pairs,
        count(*) filter (where is_positive) as positive_pairs,
        (select count(*) from user_totals) * (select count(*) from item_totals)::double as possible
    from pairs
),
figures as (
    select
        events::double as events,
        users::double as users,
        items::double as items,
        sessions::double as sessions,
        impressions::double as impressions,
        positives::double as positives,
        positives / nullif(impressions, 0) as positives_share,
        propensities / nullif(impressions, 0) as impressions_with_propensity_share,
        $constructed::int::double as shown_set_is_constructed,
        pairs / nullif(possible, 0) as pairs_shown_share,
        positive_pairs / nullif(possible, 0) as pairs_positive_share,
        without_positive / nullif(sessions, 0) as sessions_without_positive_share,
        only_positives / nullif(sessions, 0) as sessions_of_positives_only_share,
        capped / nullif(sessions, 0) as sessions_cut_by_length_share
    from event_totals, entity_totals, impression_totals, session_totals, pair_totals
)
select 'overview' as section, 'first_event' as name, first_event as bucket, null::double as value from event_totals
union all
select 'overview', 'last_event', last_event, null from event_totals
union all
select 'overview', name, null, value
from figures
unpivot include nulls (value for name in (*))

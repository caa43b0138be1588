-- One row a fact of a record that may hold several: the items that were shown with it, what was done to those, and what
-- the record itself says of its own items. A record without any, or one that is refused, is one row.
with judged as (
    select
        * exclude (fault),
        case
            when fault is not null then fault
            when list_fault is not null then list_fault
            when list_contains(
                list_transform(
                    list_concat(
                        [len(shown_value), len(shown_position), len(shown_propensity)],
                        [len(shown_category), len(shown_brand), len(shown_shop)],
                        list_transform(shown_flags, lambda x: len(x))
                    ),
                    lambda n: n <> coalesce(len(shown_items), 0)
                ),
                true
            ) then 'lists of different lengths'
            when list_contains(list_transform(list_concat(flags, flatten(shown_flags)), lambda x: x is null), true)
                then 'a flag is neither yes nor no'
            when coalesce(len(shown_items), 0) = 0 and len(items) = 0 then 'empty list'
        end as fault,
        list_filter(range(1, len($actions) + 1), lambda a: flags[a]) as own_actions,
        event_type = 'impression' and coalesce(len(shown_items), 0) > 0 as is_list
    from mapped_acts
),
listed as (
    select
        *,
        list_transform(range(1, coalesce(len(shown_items), 0) + 1), lambda p: list_concat(
            [{'place': p, 'event_type': 'impression', 'item_id': shown_items[p], 'is_own': false}],
            list_transform(
                list_filter(range(1, len($actions) + 1), lambda a: shown_flags[a][p]),
                lambda a: {'place': p, 'event_type': $actions[a], 'item_id': shown_items[p], 'is_own': false}
            )
        )) as shown_facts,
        list_transform(items, lambda x: list_transform(
            list_concat(if(is_list, [], [event_type]), list_transform(own_actions, lambda a: $actions[a])),
            lambda t: {'place': nullif(list_position(shown_items, x), 0), 'event_type': t, 'item_id': x, 'is_own': true}
        )) as own_facts
    from judged
),
facts as (
    select
        *,
        unnest(if(
            fault is not null or event_type is null,
            [{'place': null, 'event_type': event_type, 'item_id': items[1], 'is_own': true}],
            flatten(list_concat(shown_facts, own_facts))
        )) as fact
    from listed
)
select
    line, raw, fault, user_id, session_id, event_ts,
    -- A list that was shown is a request of its user, also where the log does not number it.
    coalesce(request_id, if(fact.place is null, null, epoch_us(event_ts)::varchar)) as request_id,
    fact.item_id as item_id,
    fact.event_type as event_type,
    coalesce(if(fact.is_own, value, null), shown_value[fact.place]) as value,
    -- What was done to a shown item was done where it was shown.
    coalesce(shown_position[fact.place], (fact.place - 1)::varchar, position) as position,
    coalesce(if(fact.is_own, propensity, null), shown_propensity[fact.place]) as propensity,
    coalesce(if(fact.is_own, category, null), shown_category[fact.place]) as category,
    coalesce(if(fact.is_own, brand, null), shown_brand[fact.place]) as brand,
    coalesce(if(fact.is_own, shop, null), shown_shop[fact.place]) as shop
from facts

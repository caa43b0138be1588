-- Does this data need RL at all? The decoders of each world, the two oracles standing for them in the truth: mean
-- return, and the share that it is of what looking ahead earns there (the verdict needs_rl has its interval).
with means as (
    select
        decoded.setting,
        decoded.decoder,
        count(distinct decoded.user_key) as users,
        avg(decoded."return") as "return",
        avg(decoded.depth) as depth
    from decoded
    group by decoded.setting, decoded.decoder
),
ahead as (
    select means.setting, means."return"
    from means
    where means.decoder in ('lookahead', 'oracle_farsighted')
)
select
    means.setting,
    means.decoder,
    means.users,
    means."return",
    means.depth,
    means."return" / nullif(ahead."return", 0) as share_of_lookahead
from means
left join ahead on ahead.setting = means.setting
order by means.setting = 'truth' desc, means.setting, means."return" desc, means.decoder

-- The items of the users whose impressions are recounted: those of these impressions, and of the users' past.
with users as (
    select distinct user_id from impressions join sampled using (session_id, position)
)
select distinct hash(item_id) as item from impressions semi join users using (user_id)

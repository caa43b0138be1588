-- The impressions whose features are recounted: always the same ones of the same features.
select * from features order by hash(session_id, position) limit $sample

-- Where one number of the leaderboard comes from: the raw files behind it, and the hashes of the data, the code and the
-- settings that made it, with the commit of the checkout.
select
    leaderboard.agent,
    leaderboard.leg,
    leaderboard.setting,
    leaderboard.metric,
    leaderboard.value,
    leaderboard.data_hash,
    leaderboard.code_hash,
    leaderboard.config_hash,
    leaderboard.commit,
    leaderboard.versions,
    manifest.path,
    manifest.kind,
    manifest.hash,
    manifest.size,
    manifest.rows
from leaderboard
cross join manifest
where
    leaderboard.agent = $agent
    and leaderboard.leg = $leg
    and leaderboard.setting = $setting
    and leaderboard.metric = $metric
order by manifest.kind, manifest.path

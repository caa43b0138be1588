-- One row a user, as the user was in the first slate.
select user_id, arg_min(features, {'second': second, 'page': page}) as features
from portraits
group by user_id
order by user_id

"""The Lua scripts of the Redis store: each one is one atomic step and one round trip.

Amounts come as strings and go to INCRBY and DECRBY as they came: Lua's own numbers are doubles, exact up to 2^53, which
no limit exceeds. `now` comes from the caller, so lives are given in seconds from now.
"""

from __future__ import annotations

# KEYS: generation, reservation, owners of open ones, rests, then one counter a hold; with a question: conversation
# ('' = none), leases of each seat's slots, counters.
# ARGV: generation, now, lease end, owner, life of a reservation, number of holds, then five a hold: kind, amount, need,
# cap, life; with a question: numbers of seats and of counters, the conversation's new end and its life in milliseconds,
# end of a seat's lease (0 = take none), index of the first seat (0 = none), whether rests are asked for, then three a
# seat: account, model, slots (-1 = not at once).
# Returns {0, standings, account of the conversation, account taken, calls in flight, counters, rests}, {1, index of the
# hold that did not fit, used}, or {2} in a store with another generation.
ADMIT = """
local now, owner, count = ARGV[2], ARGV[4], tonumber(ARGV[6])
local standing = {}
if count > 0 then
  local generation = redis.call('GET', KEYS[1]) or ''
  if generation == '' or generation ~= ARGV[1] then return {2} end
  local known = redis.call('EXISTS', KEYS[2]) == 1
  for i = 1, count do
    local a, key = 2 + i * 5, KEYS[4 + i]
    local used
    if ARGV[a] == 'c' then
      redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
      used = redis.call('ZCARD', key)
    else
      used = tonumber(redis.call('GET', key) or '0')
    end
    if not known and used + tonumber(ARGV[a + 2]) > tonumber(ARGV[a + 3]) then
      return {1, i - 1, string.format('%.0f', used)}
    end
    standing[i] = string.format('%.0f', used)
  end
  if not known then
    local taken = {}
    for i = 1, count do
      local a, key = 2 + i * 5, KEYS[4 + i]
      taken[2 * i - 1] = key
      if ARGV[a] == 'c' then
        redis.call('ZADD', key, ARGV[3], owner)
        redis.call('EXPIRE', key, ARGV[5])
        taken[2 * i] = 'c'
        standing[i] = string.format('%.0f', standing[i] + 1)
      else
        local fresh = redis.call('EXISTS', key) == 0
        standing[i] = string.format('%.0f', redis.call('INCRBY', key, ARGV[a + 1]))
        if fresh and ARGV[a + 4] ~= '0' then redis.call('EXPIRE', key, ARGV[a + 4]) end
        taken[2 * i] = ARGV[a + 1]
      end
    end
    redis.call('HSET', KEYS[2], unpack(taken))
    redis.call('EXPIRE', KEYS[2], ARGV[5])
    redis.call('SADD', KEYS[3], owner)
  end
end
local a, k = 7 + count * 5, 5 + count
if not ARGV[a] then return {0, standing} end
local seats, counters, first = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 5])
local conversation, pinned = KEYS[k], 0
if conversation ~= '' then
  local account, ends = string.match(redis.call('GET', conversation) or '', '^(%d+) (.+)$')
  if account and tonumber(ends) > tonumber(now) then pinned = tonumber(account) end
end
local flying, seat = {}, first
for i = 1, seats do
  flying[i] = redis.call('ZCOUNT', KEYS[k + i], '(' .. now, '+inf')
  if tonumber(ARGV[a + 4 + i * 3]) == pinned then seat = i end
end
local taken = 0
if seat > 0 and ARGV[a + 4] ~= '0' then
  local account, model = ARGV[a + 4 + seat * 3], ARGV[a + 5 + seat * 3]
  local slots, leases = tonumber(ARGV[a + 6 + seat * 3]), KEYS[k + seat]
  local free = slots == 0 or (slots > 0 and (flying[seat] < slots or redis.call('ZSCORE', leases, owner)))
  local rested = redis.call('HEXISTS', KEYS[4], account .. ' ') == 1
    or redis.call('HEXISTS', KEYS[4], account .. ' ' .. model) == 1
  if free and not rested then
    redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
    redis.call('ZADD', leases, ARGV[a + 4], owner)
    redis.call('EXPIRE', leases, ARGV[5])
    taken = tonumber(account)
  end
end
if conversation ~= '' and (taken > 0 or pinned > 0) then
  redis.call('SET', conversation, (taken > 0 and taken or pinned) .. ' ' .. ARGV[a + 2], 'PX', ARGV[a + 3])
end
local used = {}
for i = 1, counters do used[i] = redis.call('GET', KEYS[k + seats + i]) or '0' end
local rests = ARGV[a + 6] == '1' and redis.call('HGETALL', KEYS[4]) or {}
return {0, standing, pinned, taken, flying, used, rests}
"""

# KEYS: reservation, mark of a late settlement, seeds, owners of open ones, then leases of slots to give back.
# ARGV: owner, now, began ('' = none), life of the mark, then five a hold: counter, kind, limit, amount used, life.
SETTLE = """
for i = 5, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
local held = {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do held[fields[i]] = fields[i + 1] end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[4], ARGV[1])
local used = {}
for i = 5, #ARGV, 5 do used[ARGV[i]] = ARGV[i + 3] end
for counter, amount in pairs(held) do
  if amount == 'c' then
    redis.call('ZREM', counter, ARGV[1])
  elseif redis.call('EXISTS', counter) == 1 then
    redis.call('DECRBY', counter, amount)
    if redis.call('INCRBY', counter, used[counter] or '0') < 0 then redis.call('SET', counter, '0', 'KEEPTTL') end
  end
end
if ARGV[3] == '' or redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local late = 0
for i = 5, #ARGV, 5 do
  if ARGV[i + 1] == 'n' and ARGV[i + 4] ~= '-' then
    local cut = tonumber(redis.call('HGET', KEYS[3], ARGV[i + 2]) or '')
    local before = cut and tonumber(ARGV[3]) < cut
    if cut and cut <= tonumber(ARGV[2]) and (before or #fields > 0) then
      if before then late = late + 1 end
      if not held[ARGV[i]] then
        local fresh = redis.call('EXISTS', ARGV[i]) == 0
        redis.call('INCRBY', ARGV[i], ARGV[i + 3])
        if fresh and ARGV[i + 4] ~= '0' then redis.call('EXPIRE', ARGV[i], ARGV[i + 4]) end
      end
    end
  end
end
if late > 0 then redis.call('SET', KEYS[2], '1', 'EX', ARGV[4]) end
return late
"""

# Puts a live reservation back into a store that lost it, without asking whether it fits.
# KEYS: generation, seeds, reservation, owners of open ones.
# ARGV: generation, owner, lease end, life of a reservation, then five a hold: counter, kind, limit, amount, life.
# Returns 2 where the store had no such reservation: it was lost, or the call has been settled.
RESTORE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local known = redis.call('EXISTS', KEYS[3])
for i = 5, #ARGV, 5 do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 then
    if ARGV[i + 1] == 'c' then
      redis.call('ZADD', ARGV[i], ARGV[3], ARGV[2])
      redis.call('EXPIRE', ARGV[i], ARGV[4])
      redis.call('HSET', KEYS[3], ARGV[i], 'c')
    elseif ARGV[i + 4] ~= '-' and redis.call('HEXISTS', KEYS[2], ARGV[i + 2]) == 1 then
      local fresh = redis.call('EXISTS', ARGV[i]) == 0
      redis.call('INCRBY', ARGV[i], ARGV[i + 3])
      if fresh and ARGV[i + 4] ~= '0' then redis.call('EXPIRE', ARGV[i], ARGV[i + 4]) end
      redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 3])
    end
  end
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('EXPIRE', KEYS[3], ARGV[4])
  redis.call('SADD', KEYS[4], ARGV[2])
end
return 2 - known
"""

# KEYS: generation, seeds, owners of open reservations.
# ARGV: generation, then five a counter: limit, cut, counter, value, life.
# One limit may have several counters; whoever seeds a limit first seeds all of them. What open reservations hold of a
# counter stays in it: they take it out again.
SEED = """
local generation = redis.call('GET', KEYS[1]) or ''
if generation == '' then redis.call('SET', KEYS[1], ARGV[1]) elseif generation ~= ARGV[1] then return 0 end
local mine, reserved = {}, {}
for _, owner in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local fields = redis.call('HGETALL', 'baton:o:' .. owner)
  for i = 1, #fields, 2 do
    if fields[i + 1] ~= 'c' then reserved[fields[i]] = (reserved[fields[i]] or 0) + tonumber(fields[i + 1]) end
  end
end
for i = 2, #ARGV, 5 do
  local limit = ARGV[i]
  if mine[limit] == nil then mine[limit] = redis.call('HSETNX', KEYS[2], limit, ARGV[i + 1]) == 1 end
  if mine[limit] and ARGV[i + 2] ~= '' then
    local value = string.format('%.0f', ARGV[i + 3] + (reserved[ARGV[i + 2]] or 0))
    if ARGV[i + 4] == '0' then
      redis.call('SET', ARGV[i + 2], value)
    else
      redis.call('SET', ARGV[i + 2], value, 'EX', ARGV[i + 4])
    end
  end
end
return 1
"""

# KEYS: owners of open reservations, then counters. Returns what the counters stand at, and what is reserved of each.
STAND = """
local used, reserved, place = {}, {}, {}
for i = 2, #KEYS do
  used[i - 1] = redis.call('GET', KEYS[i]) or '0'
  reserved[i - 1] = 0
  place[KEYS[i]] = i - 1
end
for _, owner in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local fields = redis.call('HGETALL', 'baton:o:' .. owner)
  if #fields == 0 then redis.call('SREM', KEYS[1], owner) end
  for i = 1, #fields, 2 do
    local at = place[fields[i]]
    if at then reserved[at] = reserved[at] + tonumber(fields[i + 1]) end
  end
end
for i = 1, #reserved do reserved[i] = string.format('%.0f', reserved[i]) end
return {used, reserved}
"""

# KEYS: mark, then counters. ARGV: life of the mark, then signed amounts.
ADJUST = """
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[1]) then return 0 end
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 and redis.call('INCRBY', KEYS[i], ARGV[i]) < 0 then
    redis.call('SET', KEYS[i], '0', 'KEEPTTL')
  end
end
return 1
"""

# KEYS: leases, conversation that goes with it ('' = none).
# ARGV: owner, now, lease end, slots (0 = unlimited), life, the conversation's new value and its life in milliseconds.
TAKE_SLOT = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[2])
local full = tonumber(ARGV[4]) > 0 and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4])
if full and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[5])
if KEYS[2] ~= '' then redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[7]) end
return 1
"""

# KEYS: rests, probes. ARGV: place, now, until, named (0 or 1), the rest as JSON.
REST = """
redis.call('HDEL', KEYS[2], ARGV[1])
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  old = cjson.decode(old)
  local named, was = tonumber(ARGV[4]), old.named and 1 or 0
  local better = old['until'] <= tonumber(ARGV[2]) or named > was
  if not better and not (named == was and tonumber(ARGV[3]) >= old['until']) then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[5])
return 1
"""

# KEYS: rests, probes. ARGV: place, now, owner, end of the probe.
TAKE_PROBE = """
local rest = redis.call('HGET', KEYS[1], ARGV[1])
if not rest then return 1 end
if cjson.decode(rest)['until'] > tonumber(ARGV[2]) then return 0 end
local probe = redis.call('HGET', KEYS[2], ARGV[1])
if probe then
  probe = cjson.decode(probe)
  if probe['until'] > tonumber(ARGV[2]) and probe.owner ~= ARGV[3] then return 0 end
end
redis.call('HSET', KEYS[2], ARGV[1], cjson.encode({owner = ARGV[3], ['until'] = tonumber(ARGV[4])}))
return 1
"""
